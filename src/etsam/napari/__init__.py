"""The napari plugin: open and save volumes in Å, and a panel that segments a layer."""
