print 'training'
