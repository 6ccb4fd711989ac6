"""The CDN in front of the bucket: the rule that makes it keep weights, what it keeps, filling and emptying it.

limits    what a plan of Cloudflare's keeps, and what of a model is within it; pure
objects   a model's objects and where they lie behind the domain
edge      one read through the domain, and what came
rule      the cache rule; pure
zone      the domain's zone at Cloudflare: its plan, its rules, its purges
check     each object on two reads
warm      each object pulled through, then looked at again
"""
