"""What `camera-edit` runs beside the service. It may import anything; nothing but `cli` imports it."""
