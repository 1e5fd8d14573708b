"""The methods behind `solve`: Sinkhorn on the host and on devices, proximal, exact, and the controls."""
