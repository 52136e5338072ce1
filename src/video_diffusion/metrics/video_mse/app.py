"""The page of the metric's Space: its card."""

from pathlib import Path

import gradio as gr

card = Path(__file__).with_name("README.md").read_text(encoding="utf-8").split("---", 2)[2]

with gr.Blocks() as demo:
    gr.Markdown(card)

if __name__ == "__main__":
    demo.launch()
