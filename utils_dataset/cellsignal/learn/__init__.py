"""Networks, the batches they see and the statistics that normalise them."""
