"""coldstream: from a bare spot GPU to vLLM's first token in seconds, with the weights in an object store.

The map, from the bottom up:

    errors  units  paths  retry  env      leaves
    header  plan  manifest  selection     pure: what a file is, how it is cut, what a model consists of
    store                                 where models are kept: S3 and its like, or a folder
    source  hub                           where models come from: a folder, Hugging Face
    mirror                                upload, list, verify, download, remove
    probe  demo                           does this bucket work; does all of it work
    cli                                   one file per verb; renders what the others return
"""

__version__ = "0.1.0"
