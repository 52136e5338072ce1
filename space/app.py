"""The demo of the package beside this file, with the model that came with it or the one that MODEL names.

The server is a process of its own: where it is killed, this one starts it again.
"""

import os
import sys

from video_diffusion.demo.keeper import keep

SERVE = "--serve"

if __name__ == "__main__":
    if SERVE not in sys.argv:
        sys.exit(keep([sys.executable, __file__, SERVE]))
    from video_diffusion.demo.page import serve
    from video_diffusion.hub.finding import embedded_adapters, embedded_models

    models, adapters = embedded_models(), embedded_adapters()
    pushed = adapters if len(models) == 1 and adapters else models  # a Space has an adapter with its base alone
    serve(os.environ.get("MODEL") or next(iter(pushed)))
