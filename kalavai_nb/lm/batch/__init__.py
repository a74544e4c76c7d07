"""`lm.map`: a model over the rows of a dataset, in order, and going on after any crash."""
