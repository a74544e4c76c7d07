"""Where the tensors of a model are, and how each comes to the machine that needs it.

source.py    what a person names (a directory, a hub id, a GGUF file) as a `ModelSource`, on the notebook's machine
local.py     a directory in Hugging Face form: which of its files are the model
gguf.py      a GGUF file made into such a directory, tensor by tensor: gguf_file.py (its header), gguf_names.py (which
             tensor becomes which), gguf_tensors.py (unpack and write)
hub.py       a model of the hub: its small files and headers come to the notebook; hub_bytes.py ranges of its weights
manifest.py  what a model consists of, as JSON: travels from the notebook to workers
mirror.py    the part of it that a worker's machine has: sparse files, filled as stages need them
record.py    which bytes of a mirror are there, kept for the next pool
ranges.py    stretches of files            headers.py   the tensors of one safetensors file
cache.py     where all of this lies on a machine

Nothing here knows Dask; torch is imported where a GGUF file is converted, and only there.
"""
