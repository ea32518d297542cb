"""Data sets, their one order, and augmentation on the device."""
