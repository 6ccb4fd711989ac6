# vLLM with coldstream: nodes that have this image install nothing when they start.
#
#   docker build --build-arg VLLM=v0.32.0 -t coldstream .
#   docker run --gpus all --env-file .env -p 8000:8000 coldstream Qwen/Qwen3-8B -- --host 0.0.0.0
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

# What is used below ~/.cache (the local copy of models, compile caches) may be mounted here.
ENV COLDSTREAM_CACHE_DIR=/cache

WORKDIR /coldstream
COPY pyproject.toml README.md LICENSE ./
COPY src src
# Into vLLM's own environment, so that vLLM finds the load format; what is there already is not upgraded.
# hadolint's rule about versions means packages of an index; this is the folder above.
# Bytecode is compiled once, here: without it each import takes twice as long.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --upgrade-strategy only-if-needed '.[tls]' \
    && python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
    && mkdir -m 0700 /cache

EXPOSE 8000
ENTRYPOINT ["coldstream", "serve"]
