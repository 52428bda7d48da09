"""One file per result; `store` reads and writes them, `plots` and `tables` show them."""
