"""What can be measured of an image without a judge: one module a meter."""
