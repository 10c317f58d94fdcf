"""What stands between an operator and a working gateway, looked at from outside: names, certificates, feeds, ports."""
