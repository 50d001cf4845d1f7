"""The data set's doctor: what is wrong with labelled pictures, before time is spent on them."""
