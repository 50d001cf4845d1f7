"""Tables of image files: CSV and its kin, and Parquet."""
