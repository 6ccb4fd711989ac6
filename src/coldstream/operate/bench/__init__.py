"""`coldstream bench`: ways of loading a model, compared on this machine.

target      the model, as loaders other than ours need it described
contestant  the ways of loading: what each needs, how it is run, in which environment
runner      one run of one of them, in fresh processes
schedule    the order of the runs; pure
pagecache   taking files out of the kernel's page cache, as far as that is allowed
floors      what no loader can beat: measured on the spot
result      what came out: medians, ratios, shares of the floors; pure
comparing   all of it, from the warm-up to the result
chart       the result drawn
page        the result as a page of HTML that needs nothing else
programs    what runs in processes of its own
"""
