def show(x):
    print "accuracy", x
