"""What a report shows besides the metrics, gathered while the run has its models and images: plain values for
`report.json`."""
