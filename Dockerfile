# docker build -t recjax .   |   docker run -p 8000:8000 -e RECJAX_API_KEY=... -v $PWD/checkpoints:/runs:ro recjax /runs/NAME
# For an NVIDIA GPU: docker build --build-arg EXTRAS=serve,postgres,cuda -t recjax . && docker run --gpus=all ...
FROM python:3.12-slim
ARG EXTRAS=serve,postgres
WORKDIR /app
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY recjax recjax
RUN pip install --no-cache-dir ".[${EXTRAS}]" && useradd --create-home recjax \
    && install -d -o recjax /events
USER recjax
# The database of events, where no other is named: keep it, with -v events:/events.
VOLUME /events
# Compiled programs outlive a restart of the container.
ENV JAX_COMPILATION_CACHE_DIR=/home/recjax/programs
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(u.Request('http://127.0.0.1:8000/readyz', headers={'X-API-Key': os.environ.get('RECJAX_API_KEY', '')}), timeout=5)"]
ENTRYPOINT ["recjax", "serve", "--host=0.0.0.0", "--events=/events/recjax-events.sqlite"]
