"""The timeline of a start: where start-up time went, recorded while the engine starts, saved, and shown.

recorder         collects log marks and spans while the engine starts, and draws the verdict
phases           turns marks into phases; pure
start_record     `timeline.json`, and the line of JSON that `serve` prints for `launch`; pure
timeline_store   the saved timelines of this machine
timeline_text    for a terminal; pure
"""
