"""What a training run is made of; `etsam.train` puts it together."""
