name = 'é'
