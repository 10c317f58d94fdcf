FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/autopilot
WORKDIR /src
COPY . .
RUN /opt/autopilot/bin/pip install '.[redis,attestation,websocket,tracing]'
# Twisted rewrites its plugin cache when a plugin is not older than the cache, which a read-only file system forbids.
# The cache is therefore made here; image layers cut times to whole seconds, so it is also dated a little later.
RUN cd / \
 && /opt/autopilot/bin/python -c "from twisted.application.service import IServiceMaker; from twisted.plugin import getPlugins; assert 'chutes-autopilot' in [p.tapname for p in getPlugins(IServiceMaker)]" \
 && find /opt/autopilot -name dropin.cache -exec touch -d '+1 minute' {} +

FROM python:3.13-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 autopilot \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin autopilot \
 && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/autopilot /opt/autopilot
ENV PATH=/opt/autopilot/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# All that is ever written; everything else works on a read-only file system.
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# Follows LISTEN_ADDR; with an --endpoint of your own, replace it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; host, _, port = (os.environ.get('LISTEN_ADDR', '').strip() or '0.0.0.0:8080').rpartition(':'); host = 'localhost' if host in ('0.0.0.0', '[::]') else host; u.build_opener(u.ProxyHandler({})).open(f'http://{host}:{port}/readyz', timeout=4)"]
ENTRYPOINT ["twistd", "-n", "chutes-autopilot"]
