"""The timeline of a start: where start-up time went, recorded while the engine starts, saved, and shown.

recorder         collects log marks and spans while the engine starts
phases           turns marks into phases; pure
start_verdict    the bottleneck of the weights and of the start; pure
start_record     `timeline.json`; pure
timeline_store   the saved timelines of this machine
timeline_text    for a terminal; pure
ready_line       the line of JSON that `serve` prints for `launch`
"""
