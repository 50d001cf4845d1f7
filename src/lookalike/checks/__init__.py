"""The dataset check: what is wrong with labelled images, before time is spent on them."""
