"""The demo in the browser: limits on what comes in, a studio that makes clips, the page. Importing loads no gradio."""
