"""What a month of models in a bucket costs, there and elsewhere.

rounding   usage into units as they are billed; pure
requests   how many reads a load makes, and how many writes an upload; pure
plan       what is stored, and how often it is loaded; pure
bill       what each provider charges for that; pure
compare    from which number of launches on one costs less than another; pure
contents   what is in the bucket
actual     what Cloudflare has counted
chart      the bills over the launches, drawn
"""
