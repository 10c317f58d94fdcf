"""``chutes-autopilot keygen``: the file it makes, what it prints, and what it refuses to destroy."""

import json
import os
from pathlib import Path

import pytest

from chutes_autopilot import __version__
from chutes_autopilot.cli.keygen import keygen
from chutes_autopilot.cli.main import main
from chutes_autopilot.e2ee.server_keys import read_key_file
from chutes_autopilot.e2ee_keys import FileKeys

NOW = 1_800_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        keygen(arguments, lambda: NOW)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert "chutes-autopilot keygen: " in err
    return err


def secrets_in(path: Path) -> list[str]:
    return [entry[algo] for entry in json.loads(path.read_bytes())["keys"] for algo in ("ecdsa", "ed25519")]


def test_it_makes_a_file_that_the_service_takes(path: Path) -> None:
    """Readable by its owner only, however generous the umask is."""
    umask = os.umask(0)
    try:
        main(["keygen", str(path)])
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert len(FileKeys(str(path)).current.keys) == 2
    assert list(path.parent.iterdir()) == [path]


def test_it_prints_what_is_public(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Public keys and addresses for the operator to hand out, and no secret."""
    keygen([str(path), "--id", "2026-09"], lambda: NOW)
    out = capsys.readouterr().out
    ecdsa, ed25519 = read_key_file(path.read_bytes()).keys
    assert out.splitlines() == [
        f"wrote {path}",
        f"ecdsa public key {ecdsa.wire_hex}",
        f"ecdsa address    {ecdsa.address}",
        f"ed25519 public key {ed25519.wire_hex}",
        f"ed25519 address    {ed25519.address}",
    ]
    assert ecdsa.id == "2026-09"
    assert not [secret for secret in secrets_in(path) if secret in out]


def test_it_overwrites_nothing_unasked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys that are gone cannot be made again; --force is for those who mean it."""
    keygen([str(path)], lambda: NOW)
    before = path.read_bytes()
    assert "exists: --rotate puts new keys into it, --force overwrites it" in refusal(capsys, str(path))
    assert path.read_bytes() == before
    keygen(["--force", str(path)], lambda: NOW)
    assert len(json.loads(path.read_bytes())["keys"]) == 1
    assert not set(secrets_in(path)) & set(json.loads(before)["keys"][0].values())
    assert list(path.parent.iterdir()) == [path]


def test_rotation(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New keys come first; the old ones get an end, keep the one they have, and go when it has passed."""
    keygen([str(path), "--id=one"], lambda: NOW)
    keygen([str(path), "--id=two", "--rotate"], lambda: NOW)
    keygen([str(path), "--id=three", "--rotate", "--overlap=3600"], lambda: NOW + 100)
    keys = read_key_file(path.read_bytes())
    ends = {key.id: key.not_after for key in keys.keys}
    assert ends == {"three": None, "two": NOW + 3700, "one": NOW + 86_400}
    assert keys.identity() == ("three", "two", "one")
    assert path.stat().st_mode & 0o7777 == 0o600
    assert "old key one is valid until 2027-01-16 08:00:00 UTC" in capsys.readouterr().out
    keygen([str(path), "--id=four", "--rotate"], lambda: NOW + 3701)
    assert read_key_file(path.read_bytes()).identity() == ("four", "three", "one")


def test_rotation_when_every_key_is_over(path: Path) -> None:
    """The file then holds the new ones only."""
    keygen([str(path), "--id=one"], lambda: NOW)
    document = json.loads(path.read_bytes())
    document["keys"][0]["not_after"] = NOW - 1
    path.write_text(json.dumps(document))
    keygen([str(path), "--id=two", "--rotate"], lambda: NOW)
    assert read_key_file(path.read_bytes()).identity() == ("two",)


def test_rotation_through_a_link(path: Path) -> None:
    """The link stays one, and what it names is rotated."""
    keygen([str(path), "--id=one"], lambda: NOW)
    link = path.with_name("link")
    link.symlink_to(path)
    keygen([str(link), "--id=two", "--rotate"], lambda: NOW)
    assert link.is_symlink()
    assert read_key_file(path.read_bytes()).identity() == ("two", "one")


def test_what_it_refuses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with the file as it was, and without a word of what is in it."""
    file = str(path)
    assert "No such file or directory" in refusal(capsys, "--rotate", file)
    assert "No such file or directory" in refusal(capsys, file + "/nowhere/keys.json")
    assert "not allowed with argument" in refusal(capsys, "--rotate", "--force", file, code=2)
    assert "required: FILE" in refusal(capsys, code=2)
    assert "must be a whole number of seconds from 60" in refusal(capsys, "--overlap=59", file, code=2)
    assert "id: must be 1 to 64 letters" in refusal(capsys, "--id=a b", file)
    assert not path.exists()
    path.write_text('{"version": 1, "keys": ["5ec7e7"]}')
    path.chmod(0o600)
    assert "5ec7e7" not in refusal(capsys, "--rotate", file)
    path.chmod(0o644)
    assert "must not give group or others any permission" in refusal(capsys, "--rotate", file)
    keygen(["--force", file, "--id=one"], lambda: NOW)
    assert "id: another entry has it too" in refusal(capsys, "--rotate", "--id=one", file)
    assert list(path.parent.iterdir()) == [path]


def test_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It is this program's, not Twisted's."""
    with pytest.raises(SystemExit):
        keygen(["--version"])
    assert capsys.readouterr().out == f"chutes-autopilot {__version__}\n"
