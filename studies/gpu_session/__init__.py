"""One command on a machine with a GPU: kernels checked, ceilings and networks measured."""
