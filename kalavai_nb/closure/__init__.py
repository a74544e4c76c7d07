"""What a function carries when it goes to the pool whole: which names, how large, whether they have changed."""
