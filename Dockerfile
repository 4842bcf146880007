# k3dreg as a container:  docker build -t k3dreg .
#
# k3d runs it in the place of `registry:2`.  So it has no ENTRYPOINT, a CMD for an empty command line, one exposed port,
# and no ENV beyond the base's: ctlptl recreates a registry whose environment differs from what it expects.
# Settings come from k3d's REGISTRY_… variables, and from /etc/k3dreg/k3dreg.toml when it is mounted (docs/container.md).
ARG BASE=debian:trixie-slim

FROM ${BASE} AS built
RUN apt-get update && apt-get install -y --no-install-recommends binutils python3 python3-venv
COPY setup.py pyproject.toml README.md LICENSE /src/
COPY k3dreg /src/k3dreg
COPY twisted /src/twisted
# botocore's descriptions of AWS's services have some 100 MB: only those for credentials and ECR's tokens stay.  Of Twisted,
# only HTTP, endpoints and twistd stay.  Files are compiled below, after the removal.
RUN python3 -m venv /opt/k3dreg \
 && /opt/k3dreg/bin/pip install --no-cache-dir --no-compile '/src[link]' \
 && /opt/k3dreg/bin/pip uninstall -y -q pip \
 && cd /opt/k3dreg/lib/python3*/site-packages \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d \
      ! -name ecr ! -name ecr-public ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
 && find . -depth -type d \( -name __pycache__ -o -name test -o -name tests \) -exec rm -r {} + \
 && rm -rf twisted/conch twisted/mail twisted/words twisted/names twisted/pair \
 && find twisted/plugins -name 'twisted_*' ! -name twisted_core.py ! -name twisted_reactors.py -delete \
 && find . -name '*.so' -exec strip --strip-unneeded {} +

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates amazon-ecr-credential-helper \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*.log /var/log/apt \
 && find /usr/lib/python3* -depth -type d -name __pycache__ -exec rm -r {} + \
 && cd /usr/lib/python3.* && rm -rf ensurepip idlelib pydoc_data test tkinter turtle* lib-dynload/_test*
COPY --from=built /opt/k3dreg /opt/k3dreg
# Import all modules, which compiles them, and start once, which caches twistd's plugins and compiles the rest.  A container
# with a read-only file system could not write these files.
RUN ln -s /opt/k3dreg/bin/k3dreg /opt/k3dreg/bin/twistd /usr/local/bin/ \
 && mkdir -p /etc/k3dreg && install -d -m 1777 /var/lib/k3dreg \
 && /opt/k3dreg/bin/python -c 'import grpc, importlib, pkgutil, k3dreg; \
      [importlib.import_module(module.name) for module in pkgutil.walk_packages(k3dreg.__path__, "k3dreg.")]' \
 && { k3dreg --listen tcp:0 --state-dir /tmp/start >/tmp/start.log & } \
 && timeout 60 sh -c 'until grep -q "listening on" /tmp/start.log; do kill -0 $0 && sleep 0.1 || exit; done' $! \
 && kill $! && { wait $!; rm -r /tmp/start /tmp/start.log; }
EXPOSE 5000
VOLUME /var/lib/k3dreg
CMD ["k3dreg"]
