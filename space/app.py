"""The demo of the package beside this file, with the model that came with it or the one that MODEL names."""

import os

from video_diffusion.demo.page import serve
from video_diffusion.hub.folder import embedded_models

if __name__ == "__main__":
    serve(os.environ.get("MODEL") or next(iter(embedded_models())))
