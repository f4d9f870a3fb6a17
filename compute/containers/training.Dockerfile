# An image for nanotron training on GPU nodes: PyTorch's CUDA image plus the packages of requirements-nanotron.lock.
#
#   docker build --build-arg BASE=<name of a CUDA image with PyTorch>@sha256:<digest> \
#     -f compute/containers/training.Dockerfile -t cosmopedia-training .
#   enroot import -o cosmopedia-training.sqsh dockerd://cosmopedia-training
#
# then in the compute file, section training: container: {runtime: pyxis, image: <path>/cosmopedia-training.sqsh,
# mounts: ["<the shared file system>:<the same path>"]}, python: python. The checkout is not in the image: it comes by
# the mount, so that the code is the one that the run's git revision names. Not built by us: see docs/training.md.
ARG BASE
FROM ${BASE}
COPY requirements.lock requirements-nanotron.lock /tmp/
# torch is the base image's own; of the rest only what the worker imports
RUN python -c 'import re; \
names = "annotated-types dacite nanotron numpy packaging pyarrow pydantic pydantic-core pyyaml safetensors tqdm typing-extensions typing-inspection".split(); \
text = open("/tmp/requirements.lock").read() + open("/tmp/requirements-nanotron.lock").read(); \
entries = re.findall(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:    [^\n]*\n)*", text, re.M); \
open("/tmp/worker.lock", "w").write("".join(e for e in entries if e.partition("==")[0] in names))' \
 && python -m pip install --no-cache-dir --no-deps --require-hashes -r /tmp/worker.lock \
 && rm /tmp/*.lock
