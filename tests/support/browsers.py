"""The browser that the tests of pages drive."""

import shutil

from video_diffusion.commands.doctor import BROWSERS

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NO_CHROMIUM = f"there is no Chromium here: apt-get install {BROWSERS[0]}"
