"""The verbs of ``kalavai-nb`` that make, lend to and look after pools; each is a module as `cli` says.

known.py       the pools that are known on this machine, and which of them somebody means
background.py  into the background, and until it is ready
options.py     options that several verbs have
waiting.py     for the end of a process
"""
