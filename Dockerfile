# k3dreg as a container:  docker build -t k3dreg .
#
# It takes the place of `registry:2` in k3d's hands: no ENTRYPOINT and an empty command line means CMD, one exposed port,
# and no ENV beyond the base's, because ctlptl makes a registry anew whose environment is not what it expects.
# Settings come from k3d's REGISTRY_… variables, and from /etc/k3dreg/k3dreg.toml when it is mounted.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS built
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
COPY setup.py pyproject.toml README.md LICENSE /src/
COPY k3dreg /src/k3dreg
COPY twisted /src/twisted
# Of botocore's descriptions of AWS's services, some 100 MB, those are kept by which it gets credentials and ECR's tokens.
# Files are compiled below, when what is not needed is gone.
RUN python3 -m venv /opt/k3dreg \
 && /opt/k3dreg/bin/pip install --no-cache-dir --no-compile /src \
 && /opt/k3dreg/bin/pip uninstall -y -q pip \
 && cd /opt/k3dreg/lib/python3*/site-packages \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d \
      ! -name ecr ! -name ecr-public ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
 && find . -depth -type d \( -name __pycache__ -o -name test -o -name tests \) -exec rm -r {} + \
 && rm -rf botocore/docs twisted/conch twisted/mail twisted/words twisted/names twisted/pair \
 && find twisted/plugins -name 'twisted_*' ! -name twisted_reactors.py -delete

FROM ${BASE}
COPY --from=built /opt/k3dreg /opt/k3dreg
# The last command compiles what k3dreg imports, and nothing else, and finds twistd's plugins.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates amazon-ecr-credential-helper \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*.log /var/log/apt \
 && cd /usr/lib/python3.* && find . -depth -type d -name __pycache__ -exec rm -r {} + \
 && rm -rf idlelib lib2to3 tkinter turtledemo ensurepip pydoc_data \
 && ln -s /opt/k3dreg/bin/k3dreg /opt/k3dreg/bin/twistd /usr/local/bin/ \
 && mkdir -p /etc/k3dreg && install -d -m 1777 /var/lib/k3dreg \
 && twistd --help >/dev/null \
 && /opt/k3dreg/bin/python -c 'import k3dreg.cli, k3dreg.service, botocore.session; from twisted.internet import reactor'
EXPOSE 5000
VOLUME /var/lib/k3dreg
CMD ["k3dreg"]
