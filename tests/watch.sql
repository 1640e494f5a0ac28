-- What a new table with the columns id and version must never see: a row that goes back, and one that comes back although it was deleted.
CREATE TABLE went_back (id bigint, what text, before int, after int);
CREATE TABLE gone (id bigint PRIMARY KEY, version int NOT NULL);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.version < OLD.version THEN
        INSERT INTO went_back VALUES (NEW.id, 'an older state', OLD.version, NEW.version);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO went_back SELECT id, 'came back', version, NEW.version FROM gone WHERE id = NEW.id AND version >= NEW.version;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO gone VALUES (OLD.id, OLD.version) ON CONFLICT (id) DO UPDATE SET version = greatest(gone.version, excluded.version);
    END IF;
    RETURN NULL;
END $$;
