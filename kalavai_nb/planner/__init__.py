"""Does a model fit, where, how fast, and how many more GPUs would do: arithmetic alone.

shape.py     what a model consists of, in parameters and bytes
sources.py   … of a size such as "70B" (family.py), a config (config.py, hub.py) or a GGUF file (gguf_file.py)
quants.py    bits per weight and what they cost in quality
cards.py     memory and bandwidth of graphics cards; seats.py  devices as the planner sees them
demand.py    what a run of layers needs; packing.py, ring.py, arrange.py, split.py  which layers go where
shortfall.py what would make a model fit that does not
links.py, speed.py  bounds of tokens per second; growth.py  the years to come
rows.py      one quantisation; plan.py  all of it as one `Plan`; render.py, record.py  shown; command.py  asked for
"""
