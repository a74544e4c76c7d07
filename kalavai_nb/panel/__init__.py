"""The live panel in the notebook. `panel.Panel` is what people hold; ``static/`` is built from labextension/src."""
