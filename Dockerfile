# The command line and the page, on a CPU. For CUDA: docker build --build-arg TORCH_INDEX= .
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ARG TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir $TORCH_INDEX "$(grep '^torch==' /tmp/constraints.txt)" \
    && pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /tmp/wheels/video_diffusion-*.whl)[demo,fast]" \
    && rm -r /tmp/wheels \
    && useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/work
EXPOSE 7860
ENTRYPOINT ["video-diffusion"]
CMD ["demo", "--host", "0.0.0.0", "--port", "7860"]
