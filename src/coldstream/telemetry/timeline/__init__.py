"""What a start of vLLM spent its time on: collected, kept, and shown.

    recorder.py   Recorder: collects marks, lines and spans while vLLM starts
    marks.py      vLLM's lines that tell how far it has come; pure
    phases.py     from marks to phases; pure
    verdict.py    what the weights were limited by, and what the start; pure
    record.py     Timeline, and `timeline.json`; pure
    folder.py     Timelines: where they are kept on this machine
    text.py       for a terminal; pure
    chart.py      several side by side as a chart: SVG and PNG, by matplotlib
    page.py       the same as a page of HTML with its figures

The room knows nothing of how vLLM is started, and nothing of streams but a report: whoever starts one tells it.
"""
