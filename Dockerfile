# vLLM with coldstream, so that nodes install nothing when they start.
#
#   docker build --build-arg VLLM=v0.32.0 -t coldstream .
#   docker run --gpus all --env-file .env -p 8000:8000 coldstream Qwen/Qwen3-8B -- --host 0.0.0.0
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

# The local copies of models and the compile caches. Mount a volume here to keep them.
ENV COLDSTREAM_CACHE_DIR=/cache

WORKDIR /coldstream
COPY pyproject.toml README.md LICENSE ./
COPY src src
# Install into vLLM's own environment, so that vLLM finds the load format. Installed packages are not upgraded.
# Compile the bytecode here, because imports without it take twice as long.
# DL3013 asks for pinned versions from an index; this installs the directory above.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --upgrade-strategy only-if-needed '.[tls]' \
    && python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
    && mkdir -m 0700 /cache

EXPOSE 8000
ENTRYPOINT ["coldstream", "serve"]
