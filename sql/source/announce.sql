-- The lane's next scan starts at this id at the latest. $1 lane, $2 id.
INSERT INTO {relay}.put_back (lane, id) VALUES ($1, $2)
