"""What a model is: names, headers, chunks, the manifest and the selection of files. Pure: no I/O."""
