"""The data set's doctor: what is wrong with labelled images, before time is spent on them."""
