"""Images: reading them robustly, preparing them for a network, drawing maps back onto them."""
