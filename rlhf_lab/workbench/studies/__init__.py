"""The tables and figures of the studies, notebooks 10 and on. One module for each."""
