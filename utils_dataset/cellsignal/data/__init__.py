"""Tables, plates and images, and the virtual microscope that makes them."""
