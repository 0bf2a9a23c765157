"""The tests on other kernels, in virtual machines."""
