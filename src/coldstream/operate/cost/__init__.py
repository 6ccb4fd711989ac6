"""The monthly cost of models in a bucket, in R2 and elsewhere: prices, planned workload, bills and measured usage."""
