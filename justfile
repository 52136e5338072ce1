# What a developer does every day. Each recipe is one command; `just` is not needed to run them.

# all tests, two processes
test:
    pytest

# lint, format and types
lint:
    ruff check --fix . && ruff format . && mypy

# what CI runs, in a fresh environment
ci:
    .ci/run

# the documentation, at http://127.0.0.1:8000
docs:
    mkdocs serve

# clips from the embedded checkpoint, in samples/
clips:
    video-diffusion generate

# known holes in the pinned dependencies; needs a network
audit:
    .ci/audit

# the software bill of what is installed beside `python`, CycloneDX JSON
bill:
    .ci/bill "$(command -v python)" bill.cdx.json

# the fuzzers with a thousand cases each
fuzz:
    FUZZ_CASES=1000 pytest tests/fuzz
